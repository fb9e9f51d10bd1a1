//! Rows by index on every backend: copies, so everything is exact.
#![expect(clippy::unwrap_used, reason = "a test panics when wrong; its data is small and exact")]

mod naive;
mod tolerance;

use kernels::backend::{Backend, Mat, MatMut};
use kernels::embedding::{Embed, Embedding, Gather, Scatter};
use kernels::linear::{HostStorage, Layout, Linear, Shape};
use kernels::{Cpu, Error};
use naive::{Naive, download, numbers, upload};
use std::sync::Arc;
use tolerance::same_bits;

fn weight<B: Linear>(b: &B, shape: Shape, rows: &[f32]) -> B::Weight {
    let mut prepared = vec![0.0; b.prepared_len(shape)];
    b.prepare(shape, Layout::OutIn, rows, &mut prepared).unwrap();
    let storage: HostStorage = Arc::new(prepared);
    b.weight(shape, &storage, 0).unwrap()
}

fn embed<B: Embedding + Backend<Act = f32>>(b: &B, learned: bool) {
    for (dim, vocab) in [(1, 1), (5, 7), (32, 33), (70, 100), (576, 20)] {
        let table = numbers(1, dim * vocab);
        let w = weight(b, Shape { in_dim: dim, out_dim: vocab }, &table);
        let (p, max) = (numbers(2, dim * 9), 9);
        let ids: Vec<u32> = (0..50).map(|i| u32::try_from(i * 31 % vocab).unwrap()).collect();
        let at: Vec<u32> = (0..50).map(|i| i % max).collect();
        let mut x = upload(b, &vec![f32::NAN; 50 * (dim + 1)]);
        let (p_buf, at_buf, ids_buf) = (upload(b, &p), upload(b, &at), upload(b, &ids));
        b.embed(Embed {
            table: &w,
            ids: &ids_buf,
            positions: learned.then_some((&p_buf, &at_buf)),
            x: MatMut::new(&mut x, dim + 1),
            rows: 50,
        })
        .unwrap();
        for (i, row) in download(b, &x).chunks(dim + 1).enumerate() {
            let mut want = table[ids[i] as usize * dim..][..dim].to_vec();
            if learned {
                let p = &p[at[i] as usize * dim..];
                want.iter_mut().zip(p).for_each(|(x, p)| *x += p);
            }
            same_bits("x", &row[..dim], &want);
            assert!(row[dim].is_nan(), "wrote beside");
        }
    }
}

#[test]
fn embed_copies_rows_of_the_prepared_head() {
    for learned in [false, true] {
        embed(&Cpu, learned);
        embed(&Naive, learned);
    }
}

fn gather_and_scatter<B: Embedding + Backend<Act = f32>>(b: &B) {
    let (dim, stride) = (6, 10);
    let x = numbers(1, 40 * stride);
    let index: Vec<u32> = (0..25).map(|i| i * 17 % 40).collect();
    let (x_buf, index_buf) = (upload(b, &x), upload(b, &index));
    let mut y = upload(b, &vec![f32::NAN; 25 * dim]);
    let from = Mat::at(&x_buf, 3, stride);
    let to = MatMut::new(&mut y, dim);
    b.gather(Gather { x: from, index: &index_buf, y: to, rows: 25, dim }).unwrap();
    let gathered = download(b, &y);
    for (row, &i) in gathered.chunks(dim).zip(&index) {
        same_bits("gather", row, &x[3 + i as usize * stride..][..dim]);
    }
    for accumulate in [false, true] {
        let mut z = upload(b, &x);
        let (from, to) = (Mat::new(&y, dim), MatMut::at(&mut z, 1, stride));
        b.scatter(Scatter { x: from, index: &index_buf, y: to, accumulate, rows: 25, dim })
            .unwrap();
        let mut want = x.clone();
        for (row, &i) in gathered.chunks(dim).zip(&index) {
            let to = &mut want[1 + i as usize * stride..][..dim];
            for (to, from) in to.iter_mut().zip(row) {
                *to = if accumulate { *to + from } else { *from };
            }
        }
        same_bits("scatter", &download(b, &z), &want);
    }
}

#[test]
fn gather_and_scatter_copy_the_indexed_rows_and_touch_nothing_else() {
    gather_and_scatter(&Cpu);
    gather_and_scatter(&Naive);
}

fn refused<B: Embedding + Backend<Act = f32>>(b: &B) {
    let w = weight(b, Shape { in_dim: 4, out_dim: 3 }, &[0.0; 12]);
    let mut x = upload(b, &[5.0f32; 8]);
    let ids = upload(b, &[2u32, 3]);
    let to = MatMut::new(&mut x, 4);
    let result = b.embed(Embed { table: &w, ids: &ids, positions: None, x: to, rows: 2 });
    assert!(matches!(result, Err(Error::Routing { op: "embed", .. })));
    let (ids, p, at) = (upload(b, &[0u32, 1]), upload(b, &[0.0f32; 8]), upload(b, &[1u32, 2]));
    let to = MatMut::new(&mut x, 4);
    let positions = Some((&p, &at));
    let result = b.embed(Embed { table: &w, ids: &ids, positions, x: to, rows: 2 });
    assert!(matches!(result, Err(Error::Routing { op: "embed", .. })));
    let (from, mut y) = (upload(b, &[0.0f32; 8]), upload(b, &[0.0f32; 8]));
    let index = upload(b, &[1u32, 2]);
    let args =
        Gather { x: Mat::new(&from, 4), index: &index, y: MatMut::new(&mut y, 4), rows: 2, dim: 4 };
    assert!(matches!(b.gather(args), Err(Error::Length { op: "gather", .. })));
    let (x, y) = (Mat::new(&from, 4), MatMut::new(&mut y, 4));
    let result = b.scatter(Scatter { x, index: &index, y, accumulate: true, rows: 2, dim: 4 });
    assert!(matches!(result, Err(Error::Length { op: "scatter", .. })));
}

#[test]
fn indices_outside_are_refused() {
    refused(&Cpu);
    refused(&Naive);
}
