//! Runs a case on a device, in windows that lie as the test wants them.
//!
//! Every buffer has columns beside the windows and rows before them that are NaN: what reads them shows, and
//! what writes them is refused here. Outputs begin as NaN.

use crate::attention_case::{Case, Output};
use crate::naive::{download, upload};
use half::bf16;
use kernels::attention::flash::Tables;
use kernels::attention::{Attention, Backward, Forward, Grads, QueryGrads, Routing, Sequence};
use kernels::backend::{Mat, MatMut};
use kernels::error::Result;
use kernels::gpu::{Device, Gpu, GpuBuf};

/// Where windows lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// `dQ` in a buffer of its own although queries are keys.
    pub(super) apart: bool,
    /// Starts and strides that allow no 16-byte access.
    pub(super) odd: bool,
}

pub(super) const PLAIN: Layout = Layout { apart: false, odd: false };

/// A case's numbers, rounded as a device takes them.
pub(super) fn rounded(mut case: Case) -> Case {
    for x in [&mut case.q, &mut case.k, &mut case.v, &mut case.dout].into_iter().flatten() {
        *x = bf16::from_f32(*x).to_f32();
    }
    case
}

/// A window of `width` columns of rows.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: usize,
    stride: usize,
    width: usize,
}

impl Place {
    /// `width` of `total` columns, from `column` on.
    fn new(layout: Layout, (column, width, total): (usize, usize, usize)) -> Self {
        let (first, more) = if layout.odd { (3, 5) } else { (16, 8) };
        Self { start: first + column, stride: total + more, width }
    }

    fn len(&self, rows: usize) -> usize {
        self.start + rows * self.stride
    }

    fn put(&self, to: &mut [bf16], x: &[f32]) {
        for (row, x) in x.chunks_exact(self.width.max(1)).enumerate() {
            for (to, x) in to[self.start + row * self.stride..].iter_mut().zip(x) {
                *to = bf16::from_f32(*x);
            }
        }
    }

    /// What the window holds; makes it NaN again.
    fn take(&self, from: &mut [bf16], rows: usize) -> Vec<f32> {
        let mut values = Vec::new();
        for row in 0..rows {
            for x in &mut from[self.start + row * self.stride..][..self.width] {
                values.push(x.to_f32());
                *x = bf16::NAN;
            }
        }
        values
    }
}

fn nan(len: usize) -> Vec<bf16> {
    vec![bf16::NAN; len]
}

/// What the forward leaves on the device.
struct Attended<D: Device> {
    out: GpuBuf<D, bf16>,
    place: Place,
    lse: GpuBuf<D, f32>,
}

/// What is on the device for both directions.
struct Loaded<'a, D: Device> {
    gpu: &'a Gpu<D>,
    case: &'a Case,
    layout: Layout,
    sequences: GpuBuf<D, Sequence>,
    groups: GpuBuf<D, u32>,
    limits: GpuBuf<D, u32>,
    /// `Q`, `K` and `V`, in one buffer where queries are keys.
    inputs: Vec<GpuBuf<D, bf16>>,
    places: [(usize, Place); 3],
}

impl<'a, D: Device> Loaded<'a, D> {
    fn new(gpu: &'a Gpu<D>, case: &'a Case, layout: Layout) -> Self {
        let (qd, kd, (q_rows, k_rows)) = (case.heads.q_dim(), case.heads.kv_dim(), case.rows());
        let one = case.queries_are_keys();
        let places = if one {
            let of = |column, width| (0, Place::new(layout, (column, width, qd + 2 * kd)));
            [of(kd, qd), of(0, kd), of(kd + qd, kd)]
        } else {
            let of = |column| (1, Place::new(layout, (column, kd, 2 * kd)));
            [(0, Place::new(layout, (0, qd, qd))), of(0), of(kd)]
        };
        let mut host = [nan(places[0].1.len(q_rows)), nan(places[2].1.len(k_rows))];
        for ((buffer, place), x) in places.iter().zip([&case.q, &case.k, &case.v]) {
            let longer = place.len(q_rows.max(k_rows));
            if host[*buffer].len() < longer {
                host[*buffer].resize(longer, bf16::NAN);
            }
            place.put(&mut host[*buffer], x);
        }
        Self {
            gpu,
            case,
            layout,
            sequences: upload(gpu, &case.sequences),
            groups: upload(gpu, &case.groups),
            limits: upload(gpu, &case.limits),
            inputs: host.iter().map(|x| upload(gpu, x)).collect(),
            places,
        }
    }

    fn routing(&self) -> Routing<'_, Gpu<D>> {
        Routing {
            sequences: &self.sequences,
            num_sequences: self.case.sequences.len(),
            groups: &self.groups,
            num_groups: self.case.groups.len() - 1,
            limits: &self.limits,
        }
    }

    fn input(&self, i: usize) -> Mat<'_, GpuBuf<D, bf16>> {
        let (buffer, place) = self.places[i];
        Mat { buf: &self.inputs[buffer], start: place.start, stride: place.stride }
    }

    /// Given tables, as a pass without backward.
    fn forward(&self, tables: Option<&Tables<Gpu<D>>>) -> Result<Attended<D>> {
        let (q_rows, k_rows) = self.case.rows();
        let qd = self.case.heads.q_dim();
        let place = Place::new(self.layout, (0, qd, qd));
        let mut out = upload(self.gpu, &nan(place.len(q_rows)));
        let mut lse = upload(self.gpu, &vec![f32::NAN; q_rows * self.case.heads.heads]);
        let args = Forward {
            heads: self.case.heads,
            routing: self.routing(),
            q: self.input(0),
            k: self.input(1),
            v: self.input(2),
            out: MatMut { buf: &mut out, start: place.start, stride: place.stride },
            lse: &mut lse,
            q_rows,
            k_rows,
        };
        match tables {
            None => self.gpu.attention_forward(args)?,
            Some(tables) => self.gpu.attention_flash(args, tables)?,
        }
        Ok(Attended { out, place, lse })
    }
}

/// The forward alone: `O` and the log-sum-exp.
pub(super) fn forward<D: Device>(
    gpu: &Gpu<D>,
    case: &Case,
    layout: Layout,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let Attended { out, place, lse } = Loaded::new(gpu, case, layout).forward(None)?;
    Ok((taken(gpu, case, &out, place), download(gpu, &lse)))
}

/// `O` of a pass without backward, with the case's own tables.
pub(super) fn flash<D: Device>(gpu: &Gpu<D>, case: &Case, layout: Layout) -> Result<Vec<f32>> {
    let mut tables = Tables::alloc(gpu, case.sequences.len())?;
    tables.write(gpu, &case.sequences, &case.groups, &case.limits)?;
    flash_by(gpu, case, layout, &tables)
}

/// As [`flash`], with any tables.
pub(super) fn flash_by<D: Device>(
    gpu: &Gpu<D>,
    case: &Case,
    layout: Layout,
    tables: &Tables<Gpu<D>>,
) -> Result<Vec<f32>> {
    let Attended { out, place, .. } = Loaded::new(gpu, case, layout).forward(Some(tables))?;
    Ok(taken(gpu, case, &out, place))
}

/// What the window holds, beside which nothing was written.
fn taken<D: Device>(gpu: &Gpu<D>, case: &Case, out: &GpuBuf<D, bf16>, place: Place) -> Vec<f32> {
    let mut host = download(gpu, out);
    let values = place.take(&mut host, case.rows().0);
    assert!(host.iter().all(|x| x.is_nan()), "written beside the output");
    values
}

/// Both directions.
pub(super) fn run<D: Device>(gpu: &Gpu<D>, case: &Case, layout: Layout) -> Result<Output> {
    let loaded = Loaded::new(gpu, case, layout);
    let Attended { out, place: out_place, lse } = loaded.forward(None)?;
    let (qd, kd, (q_rows, k_rows)) = (case.heads.q_dim(), case.heads.kv_dim(), case.rows());
    let dout_place = Place::new(layout, (0, qd, qd));
    let mut dout = nan(dout_place.len(q_rows));
    dout_place.put(&mut dout, &case.dout);
    let dout = upload(gpu, &dout);
    let beside = !layout.apart && case.queries_are_keys();
    // Beside: dV, dQ, dK. Apart: dK, dV.
    let total = 2 * kd + if beside { qd } else { 0 };
    let at = |column, width| Place::new(layout, (column, width, total));
    let (dk, dv) = if beside { (at(kd + qd, kd), at(0, kd)) } else { (at(0, kd), at(kd, kd)) };
    let dq = if beside { at(kd, qd) } else { Place::new(layout, (0, qd, qd)) };
    let mut rows = upload(gpu, &nan(dk.len(k_rows).max(dv.len(k_rows))));
    let mut apart = upload(gpu, &nan(dq.len(q_rows)));
    let start = at(0, 0).start;
    gpu.attention_backward(Backward {
        heads: case.heads,
        routing: loaded.routing(),
        q: loaded.input(0),
        k: loaded.input(1),
        v: loaded.input(2),
        out: Mat { buf: &out, start: out_place.start, stride: out_place.stride },
        lse: &lse,
        dout: Mat { buf: &dout, start: dout_place.start, stride: dout_place.stride },
        grads: Grads {
            rows: MatMut { buf: &mut rows, start, stride: dk.stride },
            dq: if beside {
                QueryGrads::Beside(dq.start - start)
            } else {
                QueryGrads::Apart(MatMut { buf: &mut apart, start: dq.start, stride: dq.stride })
            },
            dk: dk.start - start,
            dv: dv.start - start,
        },
        q_rows,
        k_rows,
    })?;
    let (mut rows, mut apart) = (download(gpu, &rows), download(gpu, &apart));
    let mut out = download(gpu, &out);
    let output = Output {
        out: out_place.take(&mut out, q_rows),
        lse: download(gpu, &lse),
        dq: dq.take(if beside { &mut rows } else { &mut apart }, q_rows),
        dk: dk.take(&mut rows, k_rows),
        dv: dv.take(&mut rows, k_rows),
    };
    let left = [out, rows, apart].concat();
    assert!(left.iter().all(|x| x.is_nan()), "written beside the outputs");
    Ok(output)
}
