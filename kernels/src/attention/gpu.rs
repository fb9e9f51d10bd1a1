//! Attention on a GPU: picks the kernel for the head width, sizes its shared memory and the scratch.
//!
//! `cu/attention.cu` and `cu/attention_backward.cu` say how a tile is worked on, `cu/attention_tiles.cuh` how the
//! device cuts the sequences into tiles. The host knows the numbers of rows and sequences, not the sequences:
//! it bounds the tables, and a kernel's blocks walk over as many tiles as there are. The number of blocks
//! changes no result.

use super::{Attention, Backward, Forward, Heads, QueryGrads, Routing, flash};
use crate::error::{Error, Result};
use crate::gpu::{Arg, Device, Gpu, Launch, blocks, extent, window, window_mut};

/// Threads of a block, and of one that makes tables.
const THREADS: u32 = 128;
const PLAN_THREADS: u32 = 256;
/// Columns of a query tile, keys of a key tile.
const TILE: u32 = 64;
/// Most parts of a lone query's keys.
const MAX_SPLITS: u32 = 8;
/// Key tiles beyond which a lone query is split.
const SPLIT_TILES: usize = 4;
/// Most query heads of a key/value head: below it the kernels divide exactly by a multiplication.
const MAX_PER: usize = 128;
/// Pairs of row and head that a block of the backward's plan reduces at once.
const PAIRS: u32 = PLAN_THREADS / 8;
/// Bytes of `int2` and `int4`.
const INT2: usize = 8;
const INT4: usize = 16;

/// The kernels of one head width.
#[derive(Debug, Clone, Copy)]
struct Kernels {
    /// Width that is compiled; smaller ones are filled up with zeros in shared memory.
    width: u32,
    forward: &'static str,
    dq: &'static str,
    dkv: &'static str,
    /// Keys of a tile of `dq`.
    dq_keys: u32,
    /// Columns of a tile of `dkv`.
    dkv_columns: u32,
}

macro_rules! kernels {
    ($($width:literal: $dq_keys:literal, $dkv_columns:literal;)*) => {
        [$(Kernels {
            width: $width,
            forward: concat!("attention_forward_e", $width),
            dq: concat!("attention_dq_e", $width),
            dkv: concat!("attention_dkv_e", $width),
            dq_keys: $dq_keys,
            dkv_columns: $dkv_columns,
        }),*]
    };
}

/// By width, as at the end of `cu/attention_backward.cu`.
const KERNELS: [Kernels; 6] = kernels! {
    16: 64, 64;
    32: 64, 64;
    64: 64, 64;
    80: 64, 32;
    96: 64, 32;
    128: 32, 32;
};

impl Kernels {
    /// The narrowest that hold the heads.
    fn of(op: &'static str, heads: Heads) -> Result<&'static Self> {
        let widest = KERNELS[KERNELS.len() - 1].width as usize;
        let fits = KERNELS.iter().find(|kernels| kernels.width as usize >= heads.head_dim);
        let (what, got) = ("head width", heads.head_dim);
        fits.ok_or(Error::Shape { op, what, expected: widest, got })
    }

    fn forward_shared(&self) -> u32 {
        5 * TILE * self.width * 2
    }

    fn dq_shared(&self) -> u32 {
        (2 * TILE + 4 * self.dq_keys) * self.width * 2
    }

    fn dkv_shared(&self) -> u32 {
        (2 * TILE + 4 * self.dkv_columns) * self.width * 2 + 2 * self.dkv_columns * 12
    }
}

/// The shape of a call in the device's 31 bits.
#[derive(Debug, Clone, Copy)]
struct Extents {
    heads: u32,
    kv_heads: u32,
    per: u32,
    width: u32,
    q_rows: u32,
    k_rows: u32,
    sequences: u32,
    groups: u32,
}

impl Extents {
    fn new<D: Device>(
        op: &'static str,
        heads: Heads,
        routing: &Routing<'_, Gpu<D>>,
        (q_rows, k_rows): (usize, usize),
    ) -> Result<Self> {
        let per = heads.heads.checked_div(heads.kv_heads).unwrap_or(usize::MAX);
        if per > MAX_PER {
            let what = "query heads of a key/value head";
            return Err(Error::Shape { op, what, expected: MAX_PER, got: per });
        }
        extent(op, "query rows times heads", q_rows.saturating_mul(heads.heads))?;
        extent(op, "tiles", routing.num_sequences.saturating_mul(16 * per))?;
        Ok(Self {
            heads: extent(op, "heads", heads.heads)?,
            kv_heads: extent(op, "key/value heads", heads.kv_heads)?,
            per: extent(op, "heads", per)?,
            width: extent(op, "head width", heads.head_dim)?,
            q_rows: extent(op, "query rows", q_rows)?,
            k_rows: extent(op, "key rows", k_rows)?,
            sequences: extent(op, "sequences", routing.num_sequences)?,
            groups: extent(op, "groups", routing.num_groups)?,
        })
    }

    /// Most tiles of queries without gaps and splits.
    fn query_tiles(&self) -> u32 {
        blocks(self.q_rows * self.per, TILE) + self.sequences
    }

    /// Most tiles of keys without gaps.
    fn key_tiles(&self) -> u32 {
        blocks(self.k_rows, TILE) + self.sequences
    }

    /// Most tiles that splitting adds.
    fn split_tiles(&self) -> u32 {
        (MAX_SPLITS - 1) * self.sequences.min(self.q_rows) * blocks(self.per, TILE)
    }

    /// Bytes of a table of at most `tiles` tiles and the gaps between them.
    fn table(&self, tiles: u32) -> usize {
        (1 + tiles as usize + self.sequences as usize + 1) * INT4
    }

    /// Bytes of the first entries of sequences.
    fn starts(&self) -> usize {
        (self.sequences as usize + 2) * INT2
    }
}

impl<D: Device> Attention for Gpu<D> {
    fn attention_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        args.check()?;
        if args.q_rows == 0 || args.heads.q_dim() == 0 {
            return Ok(());
        }
        let op = "attention_forward";
        let Forward { heads, routing, q_rows, k_rows, .. } = args;
        let n = Extents::new(op, heads, &routing, (q_rows, k_rows))?;
        // A prefix and own keys may be the same rows where keys lie anywhere.
        let may_split = 2 * k_rows.div_ceil(TILE as usize) > SPLIT_TILES;
        let parts = if may_split { (n.sequences * MAX_SPLITS) as usize * heads.heads } else { 0 };
        let scratch = self.workspace([
            n.starts(),
            n.table(n.query_tiles() + n.split_tiles()),
            parts * heads.head_dim * size_of::<f32>(),
            parts * size_of::<[f32; 2]>(),
        ])?;
        let mut plan = [Arg::Pointer(0); 9];
        plan[..5].copy_from_slice(&routing_args(&routing, &n));
        plan[5..].copy_from_slice(&[n.q_rows.into(), n.per.into(), scratch.arg(0), scratch.arg(1)]);
        self.launch(Launch {
            module: "attention",
            kernel: "attention_plan",
            grid: [1, 1, 1],
            block: [PLAN_THREADS, 1, 1],
            shared: 0,
            args: &plan,
        })?;
        // In the decode form every query may be split; elsewhere few are, and blocks take what more there is.
        let more = if may_split && n.q_rows <= n.sequences { n.split_tiles() } else { 0 };
        forward_tiles(
            self,
            &args,
            (&n, n.query_tiles() + more),
            [1, 2, 3].map(|i| scratch.arg(i)),
        )?;
        if may_split { combine(self, &args, &n, [2, 3].map(|i| scratch.arg(i))) } else { Ok(()) }
    }

    fn attention_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        args.check()?;
        if args.q_rows.max(args.k_rows) == 0 || args.heads.q_dim() == 0 {
            return Ok(());
        }
        let op = "attention_backward";
        let n = Extents::new(op, args.heads, &args.routing, (args.q_rows, args.k_rows))?;
        let kernels = Kernels::of(op, args.heads)?;
        let scratch = self.workspace([
            n.starts(),
            n.starts(),
            n.table(n.query_tiles()),
            n.table(n.key_tiles()),
            args.q_rows * args.heads.heads * size_of::<[f32; 2]>(),
        ])?;
        plan_backward(self, &args, &n, [0, 1, 2, 3, 4].map(|i| scratch.arg(i)))?;
        let (rows, stride) = (&args.grads.rows, extent(op, "stride", args.grads.rows.stride)?);
        let column = |column: usize| rows.buf.arg_at(rows.start + column);
        let (dq, dq_stride) = match &args.grads.dq {
            QueryGrads::Beside(at) => (column(*at), stride),
            QueryGrads::Apart(dq) => (window_mut(dq), extent(op, "stride", dq.stride)?),
        };
        let launch = |kernel, tiles, shared, args: &[Arg]| {
            self.launch(Launch {
                module: "attention_backward",
                kernel,
                grid: [tiles, n.kv_heads, 1],
                block: [THREADS, 1, 1],
                shared,
                args,
            })
        };
        let mut list = [Arg::Pointer(0); 19];
        list[..16].copy_from_slice(&backward_args(&args, &n, [scratch.arg(4), scratch.arg(2)])?);
        list[16..18].copy_from_slice(&[dq, dq_stride.into()]);
        launch(kernels.dq, n.query_tiles(), kernels.dq_shared(), &list[..18])?;
        list[7] = scratch.arg(3);
        list[16..].copy_from_slice(&[column(args.grads.dk), column(args.grads.dv), stride.into()]);
        launch(kernels.dkv, n.key_tiles(), kernels.dkv_shared(), &list)
    }

    fn takes_flash(&self) -> bool {
        self.device().has_flash()
    }

    fn attention_flash(&self, args: Forward<'_, Self>, tables: &flash::Tables<Self>) -> Result<()> {
        flash::forward(self, args, tables)
    }
}

/// What the tables are made from.
fn routing_args<D: Device>(routing: &Routing<'_, Gpu<D>>, n: &Extents) -> [Arg; 5] {
    let (sequences, groups) = (routing.sequences.arg(), routing.groups.arg());
    [sequences, groups, routing.limits.arg(), n.sequences.into(), n.groups.into()]
}

/// The tiles of the forward, by blocks for `tiles` of them.
fn forward_tiles<D: Device>(
    gpu: &Gpu<D>,
    args: &Forward<'_, Gpu<D>>,
    (n, tiles): (&Extents, u32),
    [table, sums, bounds]: [Arg; 3],
) -> Result<()> {
    let op = "attention_forward";
    let kernels = Kernels::of(op, args.heads)?;
    gpu.launch(Launch {
        module: "attention",
        kernel: kernels.forward,
        grid: [tiles, n.kv_heads, 1],
        block: [THREADS, 1, 1],
        shared: kernels.forward_shared(),
        args: &[
            window(&args.q),
            window(&args.k),
            window(&args.v),
            window_mut(&args.out),
            args.lse.arg(),
            args.routing.sequences.arg(),
            args.routing.limits.arg(),
            table,
            sums,
            bounds,
            extent(op, "stride", args.q.stride)?.into(),
            extent(op, "stride", args.k.stride)?.into(),
            extent(op, "stride", args.v.stride)?.into(),
            extent(op, "stride", args.out.stride)?.into(),
            n.heads.into(),
            n.per.into(),
            n.width.into(),
            args.heads.scale.into(),
        ],
    })
}

/// Adds the parts of the lone queries.
fn combine<D: Device>(
    gpu: &Gpu<D>,
    args: &Forward<'_, Gpu<D>>,
    n: &Extents,
    [sums, bounds]: [Arg; 2],
) -> Result<()> {
    gpu.launch(Launch {
        module: "attention",
        kernel: "attention_combine",
        grid: [n.sequences, blocks(n.heads, THREADS / 32), 1],
        block: [THREADS, 1, 1],
        shared: 0,
        args: &[
            window_mut(&args.out),
            args.lse.arg(),
            args.routing.sequences.arg(),
            args.routing.limits.arg(),
            sums,
            bounds,
            extent("attention_forward", "stride", args.out.stride)?.into(),
            n.heads.into(),
            n.width.into(),
        ],
    })
}

/// Both tables, and the numbers of each (row, head) pair.
fn plan_backward<D: Device>(
    gpu: &Gpu<D>,
    args: &Backward<'_, Gpu<D>>,
    n: &Extents,
    [q_starts, k_starts, q_table, k_table, numbers]: [Arg; 5],
) -> Result<()> {
    let op = "attention_backward";
    let mut list = [Arg::Pointer(0); 20];
    list[..5].copy_from_slice(&routing_args(&args.routing, n));
    list[5..].copy_from_slice(&[
        n.q_rows.into(),
        n.k_rows.into(),
        n.heads.into(),
        n.per.into(),
        n.width.into(),
        q_starts,
        k_starts,
        q_table,
        k_table,
        window(&args.out),
        window(&args.dout),
        args.lse.arg(),
        extent(op, "stride", args.out.stride)?.into(),
        extent(op, "stride", args.dout.stride)?.into(),
        numbers,
    ]);
    gpu.launch(Launch {
        module: "attention_backward",
        kernel: "attention_backward_plan",
        grid: [2 + blocks(n.q_rows * n.heads, PAIRS), 1, 1],
        block: [PLAN_THREADS, 1, 1],
        shared: 0,
        args: &list,
    })
}

/// What both kernels of the backward take.
fn backward_args<D: Device>(
    args: &Backward<'_, Gpu<D>>,
    n: &Extents,
    [numbers, table]: [Arg; 2],
) -> Result<[Arg; 16]> {
    let op = "attention_backward";
    Ok([
        window(&args.q),
        window(&args.k),
        window(&args.v),
        window(&args.dout),
        numbers,
        args.routing.sequences.arg(),
        args.routing.limits.arg(),
        table,
        extent(op, "stride", args.q.stride)?.into(),
        extent(op, "stride", args.k.stride)?.into(),
        extent(op, "stride", args.v.stride)?.into(),
        extent(op, "stride", args.dout.stride)?.into(),
        n.heads.into(),
        n.per.into(),
        n.width.into(),
        args.heads.scale.into(),
    ])
}
