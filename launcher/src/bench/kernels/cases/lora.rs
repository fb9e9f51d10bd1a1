//! Grouped LoRA on q, k and v of a block: ragged segments, an adapter each.

use super::super::model::{Unit, Work};
use super::super::sizes::Sizes;
use super::routing::drawn;
use super::{Op, Rivals, Run, Subject, acts, elements, number, real, table, values};
use kernels::Result;
use kernels::backend::{Mat, MatMut};
use kernels::lora::{Backward, Forward, Segment, Site, SiteOutput};

/// q has `n` outputs, k and v `kv`; rows are the adapters' by popularity (`skew`, see `routing.rs`).
pub(super) const PRESETS: &[(&str, &str)] = &[
    ("smollm2", "rows=4096,d=576,n=576,kv=192,adapters=1,lora_rank=16,skew=1.5,dropout=0"),
    ("smollm2", "rows=4096,d=576,n=576,kv=192,adapters=16,lora_rank=16,skew=1.5,dropout=0"),
    ("smollm2", "rows=4096,d=576,n=576,kv=192,adapters=64,lora_rank=16,skew=1.5,dropout=0"),
    ("gpt2", "rows=4096,d=768,n=768,kv=768,adapters=64,lora_rank=8,skew=1.5,dropout=0"),
    ("llama7b", "rows=4096,d=4096,n=4096,kv=4096,adapters=1,lora_rank=16,skew=1.5,dropout=0"),
    ("llama7b", "rows=4096,d=4096,n=4096,kv=4096,adapters=16,lora_rank=16,skew=1.5,dropout=0"),
    ("llama7b", "rows=4096,d=4096,n=4096,kv=4096,adapters=64,lora_rank=16,skew=1.5,dropout=0"),
    ("llama7b_even", "rows=4096,d=4096,n=4096,kv=4096,adapters=64,lora_rank=16,skew=0,dropout=0"),
    (
        "llama7b_dropout",
        "rows=4096,d=4096,n=4096,kv=4096,adapters=64,lora_rank=16,skew=1.5,dropout=0.05",
    ),
];

pub(super) fn ops<B: Subject>() -> Vec<Op<B>> {
    let op = |name, work, build, rivals: Rivals<B>| Op {
        name,
        family: "lora",
        presets: PRESETS,
        work,
        build,
        rivals,
    };
    vec![
        op("lora_forward", forward_work, forward, |b, sizes| rivals(b, sizes, false)),
        op("lora_backward", backward_work, backward, |b, sizes| rivals(b, sizes, true)),
    ]
}

/// The library's products know no dropout.
fn rivals<B: Subject>(b: &B, sizes: &Sizes, backward: bool) -> Result<Vec<(&'static str, Run)>> {
    if sizes.real("dropout") > 0.0 { Ok(vec![]) } else { Ok(vec![b.per_adapter(sizes, backward)?]) }
}

/// Outputs of the sites.
fn outputs(sizes: &Sizes) -> Vec<usize> {
    let [n, kv] = sizes.counts(["n", "kv"]);
    [n, kv, kv].into_iter().filter(|&outputs| outputs > 0).collect()
}

/// `(rows, rank, inputs of all sites, outputs of all sites, elements of the adapters that have rows)`.
pub(super) fn terms(sizes: &Sizes) -> [f64; 5] {
    let [rows, d, r] = sizes.counts(["rows", "d", "lora_rank"]).map(real);
    let outputs = outputs(sizes);
    let (inputs, outs) = (real(outputs.len()) * d, real(outputs.iter().sum()));
    let drawn = drawn(sizes.count("rows"), sizes.count("adapters"), sizes.real("skew"));
    let busy = real(drawn.iter().filter(|&&rows| rows > 0).count());
    [rows, r, inputs, outs, busy * r * (inputs + outs)]
}

/// `X` read once for all sites, `Y` read and written, adapters read.
fn forward_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, r, inputs, outs, params] = terms(sizes);
    let bytes = act * rows * (real(sizes.count("d")) + 2.0 * outs) + 4.0 * params;
    Work { bytes, flop: 2.0 * rows * r * (inputs + outs), unit: Unit::Bf16 }
}

/// `X` and `dY` read, `dX` read and written, adapters read, their gradients read and written; five products, of which
/// `S` is the forward's again.
fn backward_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, r, inputs, outs, params] = terms(sizes);
    let bytes = act * rows * (3.0 * real(sizes.count("d")) + outs) + 12.0 * params;
    Work { bytes, flop: 2.0 * rows * r * (3.0 * inputs + 2.0 * outs), unit: Unit::Bf16 }
}

fn forward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let mut case = Case::new(b, sizes)?;
    Ok(Box::new(move || case.forward()))
}

fn backward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let mut case = Case::new(b, sizes)?;
    Ok(Box::new(move || case.backward()))
}

/// A pack with its adapters. The factor `alpha / r` is one, so that others need not multiply by it.
#[derive(Debug)]
pub(super) struct Case<B: Subject> {
    pub(super) b: B,
    pub(super) rows: usize,
    pub(super) d: usize,
    pub(super) lora_rank: usize,
    pub(super) sites: Vec<SiteOutput>,
    /// Elements of a row of `Y`.
    pub(super) width: usize,
    /// As on the device.
    pub(super) segments: Vec<Segment>,
    pub(super) segments_there: B::Buf<Segment>,
    pub(super) row_token: B::Buf<u32>,
    pub(super) params: B::Buf<f32>,
    pub(super) grads: B::Buf<f32>,
    pub(super) x: B::Buf<B::Act>,
    pub(super) y: B::Buf<B::Act>,
    pub(super) dy: B::Buf<B::Act>,
    pub(super) dx: B::Buf<B::Act>,
}

impl<B: Subject> Case<B> {
    pub(super) fn new(b: &B, sizes: &Sizes) -> Result<Self> {
        let [rows, d, adapters, lora_rank] = sizes.counts(["rows", "d", "adapters", "lora_rank"]);
        let (mut sites, mut units, mut width) = (Vec::new(), 0, 0);
        for (id, out_dim) in outputs(sizes).into_iter().enumerate() {
            let site = Site { in_dim: d, out_dim, unit_offset: units, id: number(id) };
            sites.push(SiteOutput { site, out_begin: 0, out_len: out_dim, y_start: width });
            units += d + out_dim;
            width += out_dim;
        }
        let size = elements([lora_rank, units]);
        let (mut segments, mut tokens) = (Vec::new(), Vec::new());
        for (user, rows) in drawn(rows, adapters, sizes.real("skew")).into_iter().enumerate() {
            let at = elements([user, size]) as u64;
            segments.push(Segment {
                row_start: number(tokens.len()),
                rows: number(rows),
                param_offset: at,
                grad_offset: at,
                lora_rank: number(lora_rank),
                scale: 1.0,
                #[expect(clippy::cast_possible_truncation, reason = "a probability")]
                dropout: sizes.real("dropout") as f32,
                step: 1,
                key: [1, number(user)],
            });
            tokens.extend((0..rows).map(number));
        }
        let slab = elements([adapters, size]);
        let (y, x) = (elements([rows, width]), elements([rows, d]));
        Ok(Self {
            b: b.clone(),
            rows,
            d,
            lora_rank,
            sites,
            width,
            segments_there: table(b, &segments)?,
            row_token: table(b, &tokens)?,
            segments,
            params: values(b, slab)?,
            grads: b.alloc(slab)?,
            x: acts(b, x)?,
            y: b.alloc(y)?,
            dy: acts(b, y)?,
            dx: b.alloc(x)?,
        })
    }

    /// `Y` grows with every call, in proportion to their number: it stays finite.
    pub(super) fn forward(&mut self) -> Result<()> {
        self.b.lora_forward(Forward {
            x: Mat::new(&self.x, self.d),
            sites: &self.sites,
            segments: &self.segments_there,
            num_segments: self.segments.len(),
            row_token: &self.row_token,
            params: &self.params,
            y: MatMut::new(&mut self.y, self.width),
            rows: self.rows,
        })
    }

    /// The same of `dX` and the gradients.
    pub(super) fn backward(&mut self) -> Result<()> {
        self.b.lora_backward(Backward {
            x: Mat::new(&self.x, self.d),
            sites: &self.sites,
            segments: &self.segments_there,
            num_segments: self.segments.len(),
            row_token: &self.row_token,
            params: &self.params,
            dy: Mat::new(&self.dy, self.width),
            grads: &mut self.grads,
            dx: Some(MatMut::new(&mut self.dx, self.d)),
            rows: self.rows,
        })
    }
}
