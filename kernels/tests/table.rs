//! Tables that train, on every backend: lookups are copies, gradients sums in the order of the rows.
#![expect(clippy::unwrap_used, reason = "a test panics when wrong; its data is small and exact")]

mod naive;
mod tolerance;

use kernels::backend::{Mat, MatMut};
use kernels::embedding::{Embedding, Lookup, LookupGradient};
use kernels::{Cpu, Error};
use naive::{Naive, download, numbers, upload};
use tolerance::{on_threads, same_bits, within};

/// A table of `values` rows inside a larger buffer, and ids in the second of three columns.
#[derive(Clone)]
struct Case {
    values: usize,
    dim: usize,
    rows: usize,
    ids: Vec<u32>,
}

const OFFSET: usize = 11;

impl Case {
    /// `of(i)` is the id of row `i`.
    fn new(values: usize, dim: usize, rows: usize, of: impl Fn(usize) -> usize) -> Self {
        let ids = (0..rows).map(|i| u32::try_from(of(i)).unwrap()).collect();
        Self { values, dim, rows, ids }
    }

    /// Every shape with ids that are spread, few, one, or skewed.
    fn all() -> Vec<Self> {
        let mut cases = vec![Self::new(1, 1, 1, |_| 0), Self::new(5, 3, 0, |_| 0)];
        for (values, dim, rows) in [(7, 5, 40), (100, 33, 300), (24, 384, 700), (500, 70, 1500)] {
            cases.push(Self::new(values, dim, rows, |i| i * 31 % values));
            cases.push(Self::new(values, dim, rows, |i| i * i % 3));
            cases.push(Self::new(values, dim, rows, |_| values - 1));
            cases.push(Self::new(values, dim, rows, |i| if i % 5 == 0 { i % values } else { 4 }));
        }
        cases
    }

    /// The ids as a column of rows of three; the other columns are outside of every table.
    fn column(&self) -> Vec<u32> {
        self.ids.iter().flat_map(|id| [u32::MAX, *id, u32::MAX]).collect()
    }

    fn stride(&self) -> usize {
        self.dim + 2
    }
}

/// `X` after a lookup, with its surroundings.
fn lookup<B: Embedding<Act = f32>>(b: &B, case: &Case, before: &[f32], add: bool) -> Vec<f32> {
    let params = upload(b, &numbers(1, OFFSET + case.values * case.dim + 5));
    let (ids, mut x) = (upload(b, &case.column()), upload(b, before));
    b.lookup(Lookup {
        params: &params,
        offset: OFFSET,
        values: case.values,
        dim: case.dim,
        ids: Mat::at(&ids, 1, 3),
        x: MatMut::at(&mut x, 1, case.stride()),
        accumulate: add,
        rows: case.rows,
    })
    .unwrap();
    download(b, &x)
}

fn copies_or_adds<B: Embedding<Act = f32>>(b: &B) {
    for case in Case::all() {
        let (dim, stride) = (case.dim, case.stride());
        let table = &numbers(1, OFFSET + case.values * dim + 5)[OFFSET..];
        let before = numbers(2, 1 + case.rows * stride);
        for add in [false, true] {
            let mut want = before.clone();
            for (i, id) in case.ids.iter().enumerate() {
                let to = &mut want[1 + i * stride..][..dim];
                for (to, from) in to.iter_mut().zip(&table[*id as usize * dim..]) {
                    *to = if add { *to + from } else { *from };
                }
            }
            same_bits("lookup", &lookup(b, &case, &before, add), &want);
        }
    }
}

#[test]
fn lookup_copies_or_adds_rows_and_touches_nothing_else() {
    copies_or_adds(&Cpu);
    copies_or_adds(&Naive);
}

/// The whole gradient buffer.
fn gradient<B: Embedding<Act = f32>>(b: &B, case: &Case, dx: &[f32], before: &[f32]) -> Vec<f32> {
    let (dx, ids) = (upload(b, dx), upload(b, &case.column()));
    let mut grads = upload(b, before);
    b.lookup_gradient(LookupGradient {
        dx: Mat::at(&dx, 1, case.stride()),
        ids: Mat::at(&ids, 1, 3),
        grads: &mut grads,
        offset: OFFSET,
        values: case.values,
        dim: case.dim,
        rows: case.rows,
    })
    .unwrap();
    download(b, &grads)
}

impl Case {
    fn operands(&self) -> (Vec<f32>, Vec<f32>) {
        let len = OFFSET + self.values * self.dim + 5;
        (numbers(3, 1 + self.rows * self.stride()), numbers(4, len))
    }

    /// Calls `add(element of the gradients, element of dX)` in the order of the contract.
    fn each(&self, mut add: impl FnMut(usize, usize)) {
        for (i, id) in self.ids.iter().enumerate() {
            for c in 0..self.dim {
                add(OFFSET + *id as usize * self.dim + c, 1 + i * self.stride() + c);
            }
        }
    }
}

#[test]
fn a_gradient_takes_its_rows_in_order_on_any_threads() {
    for case in Case::all() {
        let (dx, before) = case.operands();
        let mut want = before.clone();
        case.each(|to, from| want[to] += dx[from]);
        for (got, threads) in
            on_threads(|| gradient(&Cpu, &case, &dx, &before)).iter().zip([1, 2, 4])
        {
            same_bits(&format!("{threads} threads"), got, &want);
        }
    }
}

#[test]
fn every_backend_agrees_with_f64() {
    for case in Case::all() {
        let (dx, before) = case.operands();
        let mut want: Vec<f64> = before.iter().map(|v| f64::from(*v)).collect();
        let mut scale: Vec<f64> = want.iter().map(|v| v.abs()).collect();
        case.each(|to, from| {
            want[to] += f64::from(dx[from]);
            scale[to] += f64::from(dx[from].abs());
        });
        within("cpu", case.rows as f64, &gradient(&Cpu, &case, &dx, &before), &want, &scale);
        within("naive", case.rows as f64, &gradient(&Naive, &case, &dx, &before), &want, &scale);
    }
}

fn refuses<B: Embedding<Act = f32>>(b: &B) {
    let run = |ids: &[u32], (offset, values, rows): (usize, usize, usize)| {
        let (ids, dx) = (upload(b, ids), upload(b, &[1.0f32; 12]));
        let (mut x, mut grads): (B::Buf<f32>, B::Buf<f32>) =
            (b.alloc(12).unwrap(), b.alloc(20).unwrap());
        let (dim, params) = (4, upload(b, &[1.0f32; 20]));
        let ids = Mat::new(&ids, 1);
        let lookup = b.lookup(Lookup {
            params: &params,
            offset,
            values,
            dim,
            ids,
            x: MatMut::new(&mut x, dim),
            accumulate: false,
            rows,
        });
        let (dx, to) = (Mat::new(&dx, dim), &mut grads);
        let gradient =
            b.lookup_gradient(LookupGradient { dx, ids, grads: to, offset, values, dim, rows });
        if lookup.is_err() {
            assert!(download(b, &x).iter().all(|v| *v == 0.0), "written");
            assert!(download(b, &grads).iter().all(|v| *v == 0.0), "written");
        }
        (lookup, gradient)
    };
    let both = |r: (Result<(), Error>, Result<(), Error>), refused: fn(&Error) -> bool| {
        assert!(r.0.as_ref().is_err_and(refused) && r.1.as_ref().is_err_and(refused), "{r:?}");
    };
    assert_eq!(run(&[0, 1, 3], (4, 4, 3)), (Ok(()), Ok(())));
    assert_eq!(run(&[], (4, 0, 0)), (Ok(()), Ok(())));
    let (routing, length) = (
        |e: &Error| matches!(e, Error::Routing { .. }),
        |e: &Error| matches!(e, Error::Length { .. }),
    );
    both(run(&[0, 1, 4], (4, 4, 3)), routing);
    both(run(&[0, u32::MAX, 1], (4, 4, 3)), routing);
    both(run(&[0], (4, 0, 1)), routing);
    both(run(&[0, 1], (4, 4, 3)), length);
    both(run(&[0, 1, 2, 3], (4, 4, 4)), length);
    both(run(&[0, 1, 2], (5, 4, 3)), length);
    both(run(&[0], (usize::MAX, 4, 1)), length);
    both(run(&[0], (4, usize::MAX, 1)), length);
}

#[test]
fn ids_and_tables_outside_are_refused() {
    refuses(&Cpu);
    refuses(&Naive);
}
