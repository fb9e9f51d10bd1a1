//! Predictions of many users in one batch, each query with its user's adapter.
//!
//! Two forms: closed-label scoring (the probabilities of the task's labels, from one pass over the
//! prompts), and decoding with a key/value cache. A query's answer depends on its user's adapter, its
//! tokens and its own random counters alone.

use super::individual::PackRules;
use super::sample::{Sampling, next_token};
use super::{Error, Result};
use crate::ids::{Slot, UserId};
use crate::lora::{self, AdapterSpec, SiteList, SiteLists, Slabs};
use crate::model::Adapters;
use crate::model::batch::Batch;
use crate::model::decode::Predictor;
use crate::model::network::Network;
use crate::pack::{Packer, Piece, PieceSpan, Share, chunks, rows_of};
use kernels::Ops;
use kernels::attention::Sequence;
use kernels::lora::Segment;
use std::ops::Range;

/// A user's own adapter: whatever products of the base it adapts, whatever its rank.
#[derive(Debug, Clone)]
pub struct Own {
    /// Rank and scale.
    pub lora: AdapterSpec,
    /// Its sites.
    pub sites: SiteList,
    /// Its parameters, in the order of the sites.
    pub params: Vec<f32>,
}

/// One user's prompts and adapter.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The user.
    pub user: UserId,
    /// The adapter, or `None` for the base alone.
    pub adapter: Option<Own>,
    /// Prompts, each at least one token.
    pub prompts: Vec<Vec<u32>>,
}

/// The adapters of the users in a pack: parameters alone.
#[derive(Debug)]
struct Shelf<B: Ops> {
    /// None until the first adapter: slots are as large as the largest adapter seen.
    slabs: Option<Slabs>,
    num_slots: u32,
    params: B::Buf<f32>,
    image: Vec<f32>,
    lists: SiteLists,
}

/// An adapter on the shelf.
#[derive(Debug, Clone, Copy)]
struct Shelved {
    segment: Segment,
    layout: usize,
    slot: Slot,
}

impl<B: Ops> Shelf<B> {
    fn adapters(&self) -> Adapters<'_, B> {
        Adapters { layouts: self.lists.layouts(), params: &self.params }
    }

    /// Makes the slots, all free now, large enough for every asker's adapter.
    fn fit(&mut self, net: &Network<B>, askers: &[Asker]) -> Result<()> {
        let largest = askers.iter().filter_map(|a| a.adapter.as_ref()).map(|own| own.params.len());
        let (largest, there) =
            (largest.max().unwrap_or(0), self.slabs.as_ref().map_or(0, Slabs::capacity));
        if largest > there {
            let slabs = Slabs::new(self.num_slots, largest)?;
            self.params = net.backend().alloc(slabs.slab_len())?;
            self.image = vec![0.0; slabs.capacity()];
            self.slabs = Some(slabs);
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.slabs.as_ref().is_none_or(|slabs| slabs.num_free() == 0)
    }

    fn put(&mut self, net: &Network<B>, own: &Own) -> Result<Shelved> {
        let (expected, got) = (own.sites.params(own.lora.lora_rank as usize), own.params.len());
        if got != expected {
            return Err(lora::Error::Length { what: "adapter", expected, got }.into());
        }
        let layout = self.lists.add(&own.sites)?;
        let slabs = self.slabs.as_mut().ok_or(Error::NoSlot)?;
        let slot = slabs.take().ok_or(Error::NoSlot)?;
        slabs.image(&own.params, &mut self.image)?;
        let offset = slabs.offset(slot);
        net.backend().write(&mut self.params, offset, &self.image)?;
        let segment = Segment {
            row_start: 0,
            rows: 0,
            param_offset: offset as u64,
            grad_offset: 0,
            lora_rank: own.lora.lora_rank,
            scale: own.lora.scale(),
            dropout: 0.0,
            step: 0,
            key: [0; 2],
        };
        Ok(Shelved { segment, layout, slot })
    }

    /// Frees every slot but that of `keep`, whose user goes on in the next pack.
    fn empty(&mut self, keep: Option<Shelved>) -> Result<()> {
        let Some(slabs) = &mut self.slabs else { return Ok(()) };
        for slot in (0..slabs.num_slots()).map(Slot) {
            if keep.is_none_or(|k| k.slot != slot) && !slabs.is_free(slot) {
                slabs.release(slot)?;
            }
        }
        Ok(())
    }
}

/// Predicts; one a rank.
#[derive(Debug)]
pub struct Oracle<'a, B: Ops> {
    net: &'a Network<B>,
    predictor: Predictor<B>,
    shelf: Shelf<B>,
    rules: PackRules,
    packer: Packer,
}

/// One chunk of a user's prompts in a pack.
struct Placed {
    asker: usize,
    prompts: Range<usize>,
    adapter: Option<Shelved>,
}

impl<'a, B: Ops> Oracle<'a, B> {
    /// Buffers for packs of `rows` rows, a cache of `cache_rows` rows (zero to score only), and `num_slots` adapters
    /// (zero for the base alone) of any sites and rank.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub fn new(
        net: &'a Network<B>,
        (rows, cache_rows): (usize, usize),
        num_slots: u32,
        rules: PackRules,
    ) -> Result<Self> {
        let shelf = Shelf {
            slabs: None,
            num_slots,
            params: net.backend().alloc(0)?,
            image: Vec::new(),
            lists: SiteLists::new(net.spec()),
        };
        let predictor = Predictor::new(net, rows, cache_rows)?;
        Ok(Self { net, predictor, shelf, rules, packer: Packer::new(rules.share_prefixes) })
    }

    /// Probabilities of what may come next after each prompt: `out[asker][prompt][i]` for token `i` of the
    /// prompt's branch, softmax over the branch's tokens alone.
    ///
    /// The prompts come in runs of `branches.len()`, one for each branch in their order: with one branch they
    /// are questions, with more a question is asked once for each (see `prompt::LabelSequences`). A run is packed
    /// as one, so what its prompts share is computed once.
    ///
    /// # Errors
    /// A prompt too long for a pack, or an adapter that does not fit.
    pub fn branch_probabilities(
        &mut self,
        askers: &[Asker],
        branches: &[&[u32]],
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        let mut out: Vec<Vec<Vec<f32>>> =
            askers.iter().map(|a| vec![Vec::new(); a.prompts.len()]).collect();
        self.for_each_pack(askers, (0, branches.len()), &mut |oracle, placed| {
            let rows = output_owners(&oracle.packer, placed);
            let mut keep = |row: usize, logits: &[f32]| {
                let (asker, prompt) = rows[row];
                out[asker][prompt] = softmax_of(logits, branches[prompt % branches.len()]);
            };
            Ok(oracle.predictor.prefill(
                oracle.net,
                (oracle.packer.batch(), &[]),
                oracle.shelf.adapters(),
                &mut keep,
            )?)
        })?;
        Ok(out)
    }

    /// Continues each prompt by up to `sampling.max_new_tokens`, stopping at one of `eos` (not returned):
    /// `out[asker][prompt]`.
    ///
    /// # Errors
    /// A prompt too long for a pack or the cache, or an adapter that does not fit.
    pub fn generate(
        &mut self,
        askers: &[Asker],
        sampling: &Sampling,
        eos: &[u32],
    ) -> Result<Vec<Vec<Vec<u32>>>> {
        let mut out: Vec<Vec<Vec<u32>>> =
            askers.iter().map(|a| vec![Vec::new(); a.prompts.len()]).collect();
        let room = self.net.max_positions();
        self.for_each_pack(
            askers,
            (sampling.max_new_tokens as usize, 1),
            &mut |oracle, placed| {
                let owners = output_owners(&oracle.packer, placed);
                let (mut live, to_cache) = oracle.place(placed, askers, sampling)?;
                let mut batch = Batch::default();
                let mut take = |sequences: &mut [Generation], row: usize, logits: &[f32]| {
                    let (asker, prompt) = owners[sequences[row].output];
                    let text = &mut out[asker][prompt];
                    let key = askers[asker].user.key().random_key(sampling.seed);
                    let counter = (
                        u32::try_from(prompt).unwrap_or(u32::MAX),
                        u32::try_from(text.len()).unwrap_or(u32::MAX),
                    );
                    let token = next_token(logits, sampling, key, counter);
                    let s = &mut sequences[row];
                    s.done = eos.contains(&token);
                    if !s.done {
                        text.push(token);
                        s.token = token;
                        s.done =
                            text.len() >= sampling.max_new_tokens as usize || s.position >= room;
                    }
                };
                let adapters = oracle.shelf.adapters();
                let (net, predictor) = (oracle.net, &mut oracle.predictor);
                predictor.prefill(
                    net,
                    (oracle.packer.batch(), &to_cache),
                    adapters,
                    &mut |row, l| take(&mut live, row, l),
                )?;
                loop {
                    live.retain(|s| !s.done);
                    if live.is_empty() {
                        return Ok(());
                    }
                    let rows = decode_batch(&mut live, &mut batch);
                    predictor.decode(net, (&batch, &rows), adapters, &mut |row, l| {
                        take(&mut live, row, l)
                    })?;
                }
            },
        )?;
        Ok(out)
    }

    /// The runs of pieces that are packed as one and may share a prefix.
    fn chunks(&self, pieces: &[Piece<'_>], together: usize) -> Vec<Range<usize>> {
        if together < 2 || !self.rules.share_prefixes {
            return chunks(pieces, self.rules.chunk_rows, self.rules.share_prefixes);
        }
        let ends = |start| start..pieces.len().min(start + together);
        (0..pieces.len()).step_by(together).map(ends).collect()
    }

    /// Packs the askers' prompts in order and calls `run` on each full pack; `answer` cache rows are kept
    /// for each prompt, and `together` prompts that follow one another are packed as one.
    fn for_each_pack(
        &mut self,
        askers: &[Asker],
        (answer, together): (usize, usize),
        run: &mut dyn FnMut(&mut Self, &[Placed]) -> Result<()>,
    ) -> Result<()> {
        let (mut placed, mut prompts): (Vec<Placed>, usize) = (Vec::new(), 0);
        self.packer.clear();
        self.shelf.fit(self.net, askers)?;
        for (index, asker) in askers.iter().enumerate() {
            let pieces: Vec<Piece<'_>> = asker.prompts.iter().map(|p| Piece::prompt(p)).collect();
            let mut adapter: Option<Shelved> = None;
            for chunk in self.chunks(&pieces, together) {
                let pieces = &pieces[chunk.clone()];
                let rows = rows_of(pieces, self.rules.share_prefixes);
                let no_slot = adapter.is_none() && asker.adapter.is_some() && self.shelf.is_full();
                let cached = self.packer.rows() + rows + (prompts + pieces.len()) * answer;
                let full = self.packer.rows() + rows > self.predictor.rows()
                    || (answer > 0 && cached > self.predictor.cache_rows());
                if !placed.is_empty() && (full || no_slot) {
                    run(self, &placed)?;
                    (placed, prompts) = (Vec::new(), 0);
                    self.packer.clear();
                    self.shelf.empty(adapter)?;
                }
                if rows > self.predictor.rows() {
                    return Err(Error::ChunkTooLong {
                        user: asker.user.clone(),
                        rows,
                        room: self.predictor.rows(),
                    });
                }
                if let (None, Some(own)) = (adapter, &asker.adapter) {
                    adapter = Some(self.shelf.put(self.net, own)?);
                }
                self.packer.add(&Share {
                    adapter: adapter.map(|a| a.segment),
                    layout: adapter.map_or(0, |a| a.layout),
                    pieces,
                    weight: 0.0,
                    first_token: 0,
                });
                prompts += pieces.len();
                placed.push(Placed { asker: index, prompts: chunk, adapter });
            }
        }
        if !placed.is_empty() {
            run(self, &placed)?;
            self.shelf.empty(None)?;
        }
        self.packer.clear();
        Ok(())
    }

    /// Cache rows for the pack: each shared prefix once, then each prompt's own rows with room for its
    /// answer. The sequences to continue, in the pack's order, and the cache row of each row of the pack.
    fn place(
        &self,
        placed: &[Placed],
        askers: &[Asker],
        sampling: &Sampling,
    ) -> Result<(Vec<Generation>, Vec<u32>)> {
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut to_cache = vec![0u32; self.packer.rows()];
        let (mut next, mut live) = (0usize, Vec::new());
        for (share, place) in placed.iter().enumerate() {
            let mut prefix = None;
            for (span, prompt) in self.packer.spans(share).iter().zip(place.prompts.clone()) {
                let PieceSpan { prefix_start, prefix_len, start, len, output_start, .. } = *span;
                let p_start = *prefix.get_or_insert_with(|| {
                    fill(&mut to_cache, (prefix_start, prefix_len), next);
                    next += prefix_len;
                    next - prefix_len
                });
                fill(&mut to_cache, (start, len), next);
                live.push(Generation {
                    output: output_start,
                    adapter: place.adapter,
                    keys: Sequence {
                        q_start: 0,
                        q_len: 1,
                        k_start: small(next),
                        k_len: small(len),
                        p_start: small(p_start),
                        p_len: small(prefix_len),
                    },
                    position: askers[place.asker].prompts[prompt].len(),
                    token: 0,
                    done: false,
                });
                next += len + sampling.max_new_tokens as usize;
            }
        }
        if next > self.predictor.cache_rows() {
            return Err(Error::CacheTooSmall { rows: next, room: self.predictor.cache_rows() });
        }
        Ok((live, to_cache))
    }
}

fn fill(to_cache: &mut [u32], (start, len): (usize, usize), first: usize) {
    for (i, row) in to_cache[start..start + len].iter_mut().enumerate() {
        *row = u32::try_from(first + i).unwrap_or(u32::MAX);
    }
}

/// A sequence being continued.
struct Generation {
    /// Its output row in the prefill.
    output: usize,
    adapter: Option<Shelved>,
    /// Its rows in the cache.
    keys: Sequence,
    /// Position of its next token.
    position: usize,
    token: u32,
    done: bool,
}

/// One row a live sequence; the cache row each is written to.
fn decode_batch(live: &mut [Generation], batch: &mut Batch) -> Vec<u32> {
    batch.clear();
    batch.groups.push(0);
    let mut to_cache = Vec::with_capacity(live.len());
    for (row, s) in live.iter_mut().enumerate() {
        let row = u32::try_from(row).unwrap_or(u32::MAX);
        to_cache.push(s.keys.k_start + s.keys.k_len);
        s.keys.k_len += 1;
        batch.ids.push(s.token);
        let lane = &mut batch.full;
        lane.positions.push(u32::try_from(s.position).unwrap_or(u32::MAX));
        s.position += 1;
        lane.row_token.push(0);
        lane.limits.push(s.keys.k_len);
        lane.sequences.push(Sequence { q_start: row, ..s.keys });
        batch.groups.push(row + 1);
        if let Some(Shelved { segment, layout, .. }) = s.adapter {
            let segments = lane.segments_of(layout);
            match segments.last_mut() {
                Some(last) if last.param_offset == segment.param_offset => last.rows += 1,
                _ => segments.push(Segment { row_start: row, rows: 1, ..segment }),
            }
        }
    }
    to_cache
}

/// Asker and prompt of each output row of a pack.
fn output_owners(packer: &Packer, placed: &[Placed]) -> Vec<(usize, usize)> {
    let mut owners = Vec::with_capacity(packer.batch().outputs.rows());
    for (share, place) in placed.iter().enumerate() {
        owners.extend(
            packer
                .spans(share)
                .iter()
                .zip(place.prompts.clone())
                .map(|(_, prompt)| (place.asker, prompt)),
        );
    }
    owners
}

/// Softmax over the logits of `labels` alone, in `f64`.
#[expect(clippy::cast_possible_truncation, reason = "probabilities are kept as f32")]
fn softmax_of(logits: &[f32], labels: &[u32]) -> Vec<f32> {
    let values: Vec<f64> = labels
        .iter()
        .map(|&l| logits.get(l as usize).map_or(f64::NEG_INFINITY, |&x| f64::from(x)))
        .collect();
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = values.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| (e / sum) as f32).collect()
}
