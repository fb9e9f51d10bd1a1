//! Attention over packs, with and without a shared prefix, and decoding over a cache.

use super::super::model::{Unit, Work};
use super::super::sizes::Sizes;
use super::routing::Pack;
use super::{Op, Rivals, Run, Subject, acts, elements, no_rivals, real, table};
use kernels::Result;
use kernels::attention::flash::Tables;
use kernels::attention::{Backward, Forward, Grads, Heads, QueryGrads, Routing, Sequence};
use kernels::backend::{Mat, MatMut};

const PACKS: &[(&str, &str)] = &[
    ("smollm2", "groups=64,prefix=0,sequences=1,length=128,heads=9,kv_heads=3,head_dim=64"),
    ("smollm2_prefix", "groups=16,prefix=64,sequences=8,length=24,heads=9,kv_heads=3,head_dim=64"),
    ("gpt2", "groups=16,prefix=0,sequences=1,length=512,heads=12,kv_heads=12,head_dim=64"),
    (
        "llama7b_short",
        "groups=64,prefix=0,sequences=1,length=128,heads=32,kv_heads=32,head_dim=128",
    ),
    ("llama7b_long", "groups=4,prefix=0,sequences=1,length=2048,heads=32,kv_heads=32,head_dim=128"),
];
const CACHES: &[(&str, &str)] = &[
    ("smollm2", "sequences=64,keys=512,heads=9,kv_heads=3,head_dim=64"),
    ("gpt2", "sequences=64,keys=512,heads=12,kv_heads=12,head_dim=64"),
    ("llama7b", "sequences=64,keys=512,heads=32,kv_heads=32,head_dim=128"),
];

pub(super) fn ops<B: Subject>() -> Vec<Op<B>> {
    let op = |name, presets, work, build, rivals: Rivals<B>| Op {
        name,
        family: "attention",
        presets,
        work,
        build,
        rivals,
    };
    vec![
        op("attention_forward", PACKS, forward_work, forward, rivals),
        op("attention_backward", PACKS, backward_work, backward, no_rivals),
        op("attention_decode", CACHES, decode_work, decode, no_rivals),
    ]
}

/// Rows of the pack and pairs of a query and a key it sees.
fn pairs(sizes: &Sizes) -> (f64, f64) {
    let [groups, prefix, sequences, length] =
        sizes.counts(["groups", "prefix", "sequences", "length"]).map(real);
    let triangle = |n: f64| n * (n + 1.0) / 2.0;
    let rows = groups * (prefix + sequences * length);
    (rows, groups * (triangle(prefix) + sequences * (triangle(length) + length * prefix)))
}

fn widths(sizes: &Sizes) -> (f64, f64, f64) {
    let [h, g, e] = sizes.counts(["heads", "kv_heads", "head_dim"]).map(real);
    (h, h * e, g * e)
}

/// Two products; `Q`, `K`, `V` read, `O` and the log-sum-exp written.
fn forward_work(sizes: &Sizes, act: f64) -> Work {
    let ((rows, pairs), (h, q, kv)) = (pairs(sizes), widths(sizes));
    let bytes = act * rows * (2.0 * q + 2.0 * kv) + 4.0 * rows * h;
    Work { bytes, flop: 4.0 * q * pairs, unit: Unit::Bf16 }
}

/// Five products; `Q`, `K`, `V`, `O`, `dO` and the log-sum-exp read, `dQ`, `dK`, `dV` written.
fn backward_work(sizes: &Sizes, act: f64) -> Work {
    let ((rows, pairs), (h, q, kv)) = (pairs(sizes), widths(sizes));
    let bytes = act * rows * (4.0 * q + 4.0 * kv) + 4.0 * rows * h;
    Work { bytes, flop: 10.0 * q * pairs, unit: Unit::Bf16 }
}

/// One query a sequence, every key of it read.
fn decode_work(sizes: &Sizes, act: f64) -> Work {
    let [sequences, keys] = sizes.counts(["sequences", "keys"]).map(real);
    let (h, q, kv) = widths(sizes);
    let bytes = act * sequences * (2.0 * q + 2.0 * keys * kv) + 4.0 * sequences * h;
    Work { bytes, flop: 4.0 * q * sequences * keys, unit: Unit::Bf16 }
}

fn forward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let pack = Pack::new(sizes.counts(["groups", "prefix", "sequences", "length"]));
    let rows = pack.rows;
    let mut case = Case::new(b, sizes, pack, rows)?;
    Ok(Box::new(move || case.forward()))
}

/// Attention kernels that the device brings along (feature `flash-attn`: candle-flash-attn's), which know no prefixes.
fn rivals<B: Subject>(b: &B, sizes: &Sizes) -> Result<Vec<(&'static str, Run)>> {
    let pack = Pack::new(sizes.counts(["groups", "prefix", "sequences", "length"]));
    let mut tables = Tables::alloc(b, pack.sequences.len())?;
    tables.write(b, &pack.sequences, &pack.groups, &pack.limits)?;
    if !b.takes_flash() || tables.cut().runs.is_empty() || tables.cut().has_rest {
        return Ok(Vec::new());
    }
    let rows = pack.rows;
    let mut case = Case::new(b, sizes, pack, rows)?;
    Ok(vec![("flash_attn", Box::new(move || case.flash(&tables)))])
}

fn decode<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [sequences, keys] = sizes.counts(["sequences", "keys"]);
    let mut case = Case::new(b, sizes, Pack::decode(sequences, keys), sequences)?;
    Ok(Box::new(move || case.forward()))
}

fn backward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let pack = Pack::new(sizes.counts(["groups", "prefix", "sequences", "length"]));
    let rows = pack.rows;
    let mut case = Case::new(b, sizes, pack, rows)?;
    // Output and log-sum-exp must belong to the scores.
    case.forward()?;
    let width = case.heads.q_dim() + 2 * case.heads.kv_dim();
    let dout = acts(b, elements([rows, case.heads.q_dim()]))?;
    let mut grads = b.alloc(elements([rows, width]))?;
    Ok(Box::new(move || case.backward(&dout, &mut grads)))
}

/// A pack with its queries, keys and values.
#[derive(Debug)]
struct Case<B: Subject> {
    b: B,
    heads: Heads,
    sequences: B::Buf<Sequence>,
    num_sequences: usize,
    groups: B::Buf<u32>,
    num_groups: usize,
    limits: B::Buf<u32>,
    q: B::Buf<B::Act>,
    k: B::Buf<B::Act>,
    v: B::Buf<B::Act>,
    out: B::Buf<B::Act>,
    lse: B::Buf<f32>,
    q_rows: usize,
    k_rows: usize,
}

impl<B: Subject> Case<B> {
    fn new(b: &B, sizes: &Sizes, pack: Pack, q_rows: usize) -> Result<Self> {
        let [h, kv_heads, head_dim] = sizes.counts(["heads", "kv_heads", "head_dim"]);
        #[expect(clippy::cast_possible_truncation, reason = "a factor of about a tenth")]
        let scale = real(head_dim).sqrt().recip() as f32;
        let heads = Heads { heads: h, kv_heads, head_dim, scale };
        let (q, kv) = (elements([q_rows, heads.q_dim()]), elements([pack.rows, heads.kv_dim()]));
        Ok(Self {
            heads,
            num_sequences: pack.sequences.len(),
            sequences: table(b, &pack.sequences)?,
            num_groups: pack.groups.len() - 1,
            groups: table(b, &pack.groups)?,
            limits: table(b, &pack.limits)?,
            q: acts(b, q)?,
            k: acts(b, kv)?,
            v: acts(b, kv)?,
            out: b.alloc(q)?,
            lse: b.alloc(elements([q_rows, h]))?,
            b: b.clone(),
            q_rows,
            k_rows: pack.rows,
        })
    }

    fn forward(&mut self) -> Result<()> {
        let b = self.b.clone();
        b.attention_forward(self.args())
    }

    fn flash(&mut self, tables: &Tables<B>) -> Result<()> {
        let b = self.b.clone();
        b.attention_flash(self.args(), tables)
    }

    fn args(&mut self) -> Forward<'_, B> {
        let (q, kv) = (self.heads.q_dim(), self.heads.kv_dim());
        Forward {
            heads: self.heads,
            routing: Routing {
                sequences: &self.sequences,
                num_sequences: self.num_sequences,
                groups: &self.groups,
                num_groups: self.num_groups,
                limits: &self.limits,
            },
            q: Mat::new(&self.q, q),
            k: Mat::new(&self.k, kv),
            v: Mat::new(&self.v, kv),
            out: MatMut::new(&mut self.out, q),
            lse: &mut self.lse,
            q_rows: self.q_rows,
            k_rows: self.k_rows,
        }
    }

    fn backward(&mut self, dout: &B::Buf<B::Act>, grads: &mut B::Buf<B::Act>) -> Result<()> {
        let (q, kv) = (self.heads.q_dim(), self.heads.kv_dim());
        self.b.attention_backward(Backward {
            heads: self.heads,
            routing: Routing {
                sequences: &self.sequences,
                num_sequences: self.num_sequences,
                groups: &self.groups,
                num_groups: self.num_groups,
                limits: &self.limits,
            },
            q: Mat::new(&self.q, q),
            k: Mat::new(&self.k, kv),
            v: Mat::new(&self.v, kv),
            out: Mat::new(&self.out, q),
            lse: &self.lse,
            dout: Mat::new(dout, q),
            grads: Grads {
                rows: MatMut::new(grads, q + 2 * kv),
                dq: QueryGrads::Beside(0),
                dk: q,
                dv: q + kv,
            },
            q_rows: self.q_rows,
            k_rows: self.k_rows,
        })
    }
}
