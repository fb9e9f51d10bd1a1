//! Rows by index: copies and sums in a fixed order, so everything is exact up to one rounding to `bf16`.

use crate::harness::{PLACES, Subject, Window, caught, checked, fast, own, rounded};
use crate::naive::{download, numbers, upload};
use crate::tolerance::same_bits;
use emulator::Mode;
use kernels::Error;
use kernels::backend::{Backend, Mat};
use kernels::embedding::{Embed, Embedding, Gather, Lookup, LookupGradient, Scatter};
use kernels::linear::{HostStorage, Layout, Shape};
use std::sync::Arc;

/// Ids of `rows` rows, below `values`, with repetitions and a gap.
fn ids(rows: usize, values: usize) -> Vec<u32> {
    (0..rows).map(|i| (i * i * 7 % values.max(1)) as u32).collect()
}

/// Distinct rows of twice as many.
fn distinct(rows: usize) -> Vec<u32> {
    (0..rows).map(|i| if i % 2 == 0 { i } else { 2 * rows - i } as u32).collect()
}

/// Row `index[i]` of `x`, plus row `i` of `more`, rounded once.
fn picked(x: &[f32], index: &[u32], dim: usize, more: Option<&[f32]>) -> Vec<f32> {
    let row = |(i, &from): (usize, &u32)| {
        let at = from as usize * dim;
        (0..dim).map(move |c| x[at + c] + more.map_or(0.0, |more| more[i * dim + c])).collect()
    };
    rounded(&index.iter().enumerate().flat_map::<Vec<f32>, _>(row).collect::<Vec<_>>())
}

fn embed<B: Embedding + Subject>(b: &B, (rows, dim): (usize, usize), place: (usize, usize)) {
    let (vocab, known) = (23, 9);
    let (table, p) = (rounded(&numbers(1, vocab * dim)), numbers(2, known * dim));
    let shape = Shape { in_dim: dim, out_dim: vocab };
    let mut prepared = vec![0.0; b.prepared_len(shape)];
    b.prepare(shape, Layout::OutIn, &table, &mut prepared).unwrap();
    let storage: HostStorage = Arc::new(prepared);
    let weight = b.weight(shape, &storage, 0).unwrap();
    let (id, at) = (ids(rows, vocab), ids(rows, known));
    let (id_buf, at_buf, p_buf) = (upload(b, &id), upload(b, &at), upload(b, &p));
    let w = Window::new(rows, dim, place);
    let places: Vec<f32> = at.iter().flat_map(|&i| p[i as usize * dim..][..dim].to_vec()).collect();
    for learned in [false, true] {
        let mut x = w.output(b);
        b.embed(Embed {
            table: &weight,
            ids: &id_buf,
            positions: learned.then_some((&p_buf, &at_buf)),
            x: w.mat_mut(&mut x),
            rows,
        })
        .unwrap();
        let want = picked(&table, &id, dim, learned.then_some(&places));
        same_bits("embed", &w.result(b, &x), &want);
    }
}

fn gather_and_scatter<B: Embedding + Subject>(
    b: &B,
    (rows, dim): (usize, usize),
    place: (usize, usize),
) {
    let (few, many) = (Window::new(rows, dim, place), Window::new(2 * rows, dim, place));
    let (small, large) = (rounded(&numbers(1, rows * dim)), rounded(&numbers(2, 2 * rows * dim)));
    let index = distinct(rows);
    let index_buf = upload(b, &index);
    let (x, mut y) = (many.updated(b, &large), few.output(b));
    let (from, to) = (many.mat(&x), few.mat_mut(&mut y));
    b.gather(Gather { x: from, index: &index_buf, y: to, rows, dim }).unwrap();
    same_bits("gather", &few.result(b, &y), &picked(&large, &index, dim, None));
    for accumulate in [false, true] {
        let (x, mut y) = (few.input(b, &small), many.updated(b, &large));
        let (x, to) = (few.mat(&x), many.mat_mut(&mut y));
        b.scatter(Scatter { x, index: &index_buf, y: to, accumulate, rows, dim }).unwrap();
        let mut want = large.clone();
        for (i, &to) in index.iter().enumerate() {
            let to = &mut want[to as usize * dim..][..dim];
            for (to, v) in to.iter_mut().zip(&small[i * dim..]) {
                *to = if accumulate { *to + v } else { *v };
            }
        }
        same_bits("scatter", &many.result(b, &y), &rounded(&want));
    }
}

/// `offset` puts the table at any alignment; the ids are the second of three columns.
fn lookup<B: Embedding + Subject>(
    b: &B,
    (rows, dim): (usize, usize),
    place: (usize, usize),
    offset: usize,
) {
    let values = 5;
    let (w, params) = (Window::new(rows, dim, place), numbers(1, offset + values * dim + 1));
    let table = &params[offset..];
    let (id, before) = (ids(rows, values), rounded(&numbers(2, rows * dim)));
    let columns: Vec<u32> = id.iter().flat_map(|&id| [u32::MAX, id, u32::MAX]).collect();
    let (params_buf, ids_buf) = (upload(b, &params), upload(b, &columns));
    let column = Mat::at(&ids_buf, 1, 3);
    for accumulate in [false, true] {
        let mut x = if accumulate { w.updated(b, &before) } else { w.output(b) };
        let to = w.mat_mut(&mut x);
        let params = &params_buf;
        b.lookup(Lookup { params, offset, values, dim, ids: column, x: to, accumulate, rows })
            .unwrap();
        let want = picked(table, &id, dim, accumulate.then_some(&before));
        same_bits("lookup", &w.result(b, &x), &want);
    }
    let (dx, mut grads) = (w.input(b, &before), upload(b, &params));
    let (dx, to) = (w.mat(&dx), &mut grads);
    b.lookup_gradient(LookupGradient { dx, ids: column, grads: to, offset, values, dim, rows })
        .unwrap();
    let mut want = params.clone();
    for (i, &id) in id.iter().enumerate() {
        for c in 0..dim {
            want[offset + id as usize * dim + c] += before[i * dim + c];
        }
    }
    same_bits("lookup_gradient", &download(b, &grads), &want);
}

#[test]
fn rows_have_the_bits_of_the_contract() {
    for shape in [(0, 8), (1, 1), (5, 7), (3, 8), (9, 100), (2, 1032)] {
        for place in PLACES {
            embed(fast(), shape, place);
            gather_and_scatter(fast(), shape, place);
            lookup(fast(), shape, place, place.0);
        }
    }
    lookup(fast(), (100, 300), PLACES[1], 4);
}

#[test]
fn indices_out_of_range_are_refused_by_the_next_read() {
    let (b, dim) = (&own(), 4);
    let act = |n: usize| upload(b, &vec![half::bf16::ONE; n]);
    let index = upload(b, &[1u32, 3, 2]);
    let told = |result: Result<(), Error>| {
        result.and_then(|()| b.read(&index, 0, &mut [])).map_err(|error| error.to_string())
    };
    // Two and a half rows from element 2 on: rows 0 and 1.
    let (x, mut y) = (act(2 + 2 * 6 + 3), act(12));
    let (from, to) = (Mat { buf: &x, start: 2, stride: 6 }, kernels::MatMut::new(&mut y, dim));
    let result = told(b.gather(Gather { x: from, index: &index, y: to, rows: 3, dim }));
    assert_eq!(result, Err("gather: row 1: index 3 is out of range".into()));
    let to = kernels::MatMut { buf: &mut y, start: 0, stride: dim };
    let from = Mat::new(&x, dim);
    let result =
        told(b.scatter(Scatter { x: from, index: &index, y: to, accumulate: true, rows: 3, dim }));
    assert_eq!(result, Err("scatter: row 1: index 3 is out of range".into()));
    let params = upload(b, &[0.0f32; 12]);
    let ids = Mat::new(&index, 1);
    let (values, offset, to) = (3, 0, kernels::MatMut::new(&mut y, dim));
    let lookup =
        Lookup { params: &params, offset, values, dim, ids, x: to, accumulate: false, rows: 3 };
    assert_eq!(told(b.lookup(lookup)), Err("lookup: row 1: id 3 is out of range".into()));
    assert_eq!(told(Ok(())), Ok(()), "a refusal is told once");
}

#[test]
fn every_access_is_checked() {
    for (shape, place) in [((0, 4), 0), ((3, 7), 2), ((9, 16), 1), ((2, 260), 0)] {
        embed(checked(), shape, PLACES[place]);
        gather_and_scatter(checked(), shape, PLACES[place]);
        lookup(checked(), shape, PLACES[place], place);
    }
    lookup(checked(), (70, 12), PLACES[1], 0);
}

#[test]
fn seeded_faults_are_caught() {
    // Every row adds to the table, also those whose id an earlier row owns.
    caught(Mode::Fast, "LOOKUP_OWNER", |b| lookup(b, (9, 8), PLACES[0], 0));
    caught(Mode::Checked, "GATHER_UNCHECKED", |b| {
        let (x, mut y) = (upload(b, &[half::bf16::ONE; 8]), b.alloc(8).unwrap());
        let (index, to) = (upload(b, &[1u32]), kernels::MatMut::new(&mut y, 8));
        let result = b.gather(Gather { x: Mat::new(&x, 8), index: &index, y: to, rows: 1, dim: 8 });
        result.unwrap();
        b.read(&index, 0, &mut []).unwrap();
    });
}
