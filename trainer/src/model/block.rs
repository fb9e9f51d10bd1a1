//! One block, forward and backward, as in the picture of `docs/design.md` section 2.
//!
//! `norm -> q,k,v + LoRA -> rope -> attention -> o + LoRA -> norm -> MLP + LoRA`. In the last block only
//! keys and values see all rows; queries, attention output, `o` and the MLP see the output rows.

use super::Result;
use super::activations::{BlockActs, Gradients, LastActs, Scratch};
use super::batch::DeviceLane;
use super::network::Block;
use super::pass::{Acts, In, Pass, placed};
use super::places::TrunkPlaces;
use super::sites::{Part, Pick};
use kernels::{Mat, MatMut, Ops, activation, adapted, attention, embedding};

/// Where the backward of a block may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    /// The lowest part whose adapters need gradients.
    pub(super) lowest: Part,
    /// Whether the first norm's output needs its gradient: something below the block does, or the norm itself trains.
    pub(super) normed: bool,
    /// Whether something below the block needs the gradient of its input.
    pub(super) below: bool,
}

impl<B: Ops> Pass<'_, B> {
    /// The products of queries, keys and values, in the columns of their buffer.
    fn qkv_products<'b>(&self, block: &'b Block<B>) -> [adapted::Product<'b, B>; 3] {
        let d = self.net.dims;
        [placed(&block.q, 0), placed(&block.k, d.q), placed(&block.v, d.q + d.kv)]
    }

    /// The MLP's products of its input, likewise.
    fn mlp_products<'b>(&self, block: &'b Block<B>) -> Vec<adapted::Product<'b, B>> {
        let width = self.net.dims.mlp;
        block.mlp_in.iter().enumerate().map(|(i, w)| placed(w, i * width)).collect()
    }

    /// Queries, keys and values of all rows, adapted and rotated, from the block's input.
    pub(super) fn qkv(
        &self,
        block: &Block<B>,
        x: &Acts<B>,
        qkv: &mut Acts<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let (d, lane) = (self.net.dims, &self.batch.full);
        let normed = &mut scratch.normed;
        self.norm(lane.rows, &block.norm1, Mat::new(x, d.hidden), MatMut::new(normed, d.hidden))?;
        let (at, y) = ((block, (|s| &s.qkv) as Pick), MatMut::new(&mut *qkv, d.qkv));
        let products = self.qkv_products(block);
        self.adapted(lane, at, (Mat::new(&*normed, d.hidden), &products), None, y)?;
        self.rotate(lane, MatMut::at(qkv, 0, d.qkv), self.net.heads.heads, false)?;
        self.rotate(lane, MatMut::at(qkv, d.q, d.qkv), self.net.heads.kv_heads, false)
    }

    /// A whole block over all rows: `output = block(x)`.
    pub(super) fn block(
        &self,
        block: &Block<B>,
        x: &Acts<B>,
        acts: &mut BlockActs<B>,
        output: &mut Acts<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let (d, lane) = (self.net.dims, &self.batch.full);
        self.qkv(block, x, &mut acts.qkv, scratch)?;
        self.attend(lane, self.packed(&acts.qkv), lane.rows, (&mut acts.attention, &mut acts.lse))?;
        self.after_attention(block, (lane, Mat::new(x, d.hidden)), acts, output, scratch)
    }

    /// The last block: `last.output = block(x)` for the output rows.
    pub(super) fn last_block(
        &self,
        block: &Block<B>,
        x: &Acts<B>,
        last: &mut LastActs<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let (d, lane, outputs) = (self.net.dims, &self.batch.full, &self.batch.outputs);
        self.norm(
            lane.rows,
            &block.norm1,
            Mat::new(x, d.hidden),
            MatMut::new(&mut scratch.normed, d.hidden),
        )?;
        let [q, k, v] = self.qkv_products(block);
        let (x_kv, y) = (Mat::new(&scratch.normed, d.hidden), MatMut::new(&mut last.qkv, d.qkv));
        self.adapted(lane, (block, |s| &s.kv), (x_kv, &[k, v]), None, y)?;
        self.rotate(lane, MatMut::at(&mut last.qkv, d.q, d.qkv), self.net.heads.kv_heads, false)?;
        self.gather(&scratch.normed, &mut scratch.gathered)?;
        let (x_q, y) = (Mat::new(&scratch.gathered, d.hidden), MatMut::new(&mut last.q, d.q));
        self.adapted(outputs, (block, |s| &s.q), (x_q, &[q]), None, y)?;
        self.rotate(outputs, MatMut::new(&mut last.q, d.q), self.net.heads.heads, false)?;
        let (_, k, v) = self.packed(&last.qkv);
        let out = (&mut last.acts.attention, &mut last.acts.lse);
        self.attend(outputs, (Mat::new(&last.q, d.q), k, v), lane.rows, out)?;
        self.gather(x, &mut last.input)?;
        let input = Mat::new(&last.input, d.hidden);
        self.after_attention(block, (outputs, input), &mut last.acts, &mut last.output, scratch)
    }

    /// Attention of a lane's rows over `k_rows` rows of keys and values.
    pub(super) fn attend(
        &self,
        lane: &DeviceLane<B>,
        (q, k, v): (In<'_, B>, In<'_, B>, In<'_, B>),
        k_rows: usize,
        (out, lse): (&mut Acts<B>, &mut B::Buf<f32>),
    ) -> Result<()> {
        let args = attention::Forward {
            heads: self.net.heads,
            routing: lane.routing(&self.batch.groups, self.batch.num_groups),
            q,
            k,
            v,
            out: MatMut::new(out, self.net.dims.q),
            lse,
            q_rows: lane.rows,
            k_rows,
        };
        match &lane.flash {
            Some(tables) => self.net.backend.attention_flash(args, tables)?,
            None => self.net.backend.attention_forward(args)?,
        }
        Ok(())
    }

    /// From the attention output to the MLP's input products:
    /// `middle = x + o(attention)`, `mlp_in = mlp_in(norm(middle))`.
    fn to_mlp(
        &self,
        block: &Block<B>,
        lane: &DeviceLane<B>,
        x: In<'_, B>,
        acts: &mut BlockActs<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let d = self.net.dims;
        let (heads, y) = (Mat::new(&acts.attention, d.q), MatMut::new(&mut acts.middle, d.hidden));
        self.adapted(lane, (block, |s| &s.o), (heads, &[placed(&block.o, 0)]), Some(x), y)?;
        let middle = Mat::new(&acts.middle, d.hidden);
        self.norm(lane.rows, &block.norm2, middle, MatMut::new(&mut scratch.normed, d.hidden))?;
        let normed = Mat::new(&scratch.normed, d.hidden);
        let (products, y) = (self.mlp_products(block), MatMut::new(&mut acts.mlp_in, d.mlp_in));
        self.adapted(lane, (block, |s| &s.mlp_in), (normed, &products), None, y)
    }

    /// From the attention output on: [`Pass::to_mlp`], then `output = middle + down(act(mlp_in))`.
    pub(super) fn after_attention(
        &self,
        block: &Block<B>,
        (lane, x): (&DeviceLane<B>, In<'_, B>),
        acts: &mut BlockActs<B>,
        output: &mut Acts<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let d = self.net.dims;
        self.to_mlp(block, lane, x, acts, scratch)?;
        self.activate(lane.rows, &acts.mlp_in, &mut scratch.hidden)?;
        let (hidden, middle) = (Mat::new(&scratch.hidden, d.mlp), Mat::new(&acts.middle, d.hidden));
        let (products, y) = ([placed(&block.down, 0)], MatMut::new(output, d.hidden));
        self.adapted(lane, (block, |s| &s.down), (hidden, &products), Some(middle), y)
    }

    /// Fills the buffers of a block that were not stored, from its stored input.
    pub(super) fn run_again(
        &self,
        block: &Block<B>,
        x: &Acts<B>,
        acts: &mut BlockActs<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let (d, lane) = (self.net.dims, &self.batch.full);
        self.qkv(block, x, &mut acts.qkv, scratch)?;
        self.attend(lane, self.packed(&acts.qkv), lane.rows, (&mut acts.attention, &mut acts.lse))?;
        self.to_mlp(block, lane, Mat::new(x, d.hidden), acts, scratch)
    }

    /// Queries, keys and values as columns of one buffer.
    pub(super) fn packed<'b>(&self, qkv: &'b Acts<B>) -> (In<'b, B>, In<'b, B>, In<'b, B>) {
        let d = self.net.dims;
        (Mat::at(qkv, 0, d.qkv), Mat::at(qkv, d.q, d.qkv), Mat::at(qkv, d.q + d.kv, d.qkv))
    }

    fn activate(&self, rows: usize, x: &Acts<B>, h: &mut Acts<B>) -> Result<()> {
        let (kind, d) = (self.net.kind, self.net.dims);
        let (x, h, dim) = (Mat::new(x, d.mlp_in), MatMut::new(h, d.mlp), d.mlp);
        Ok(self.net.backend.activation_forward(activation::Forward { kind, x, h, rows, dim })?)
    }

    /// Output rows of `x`.
    pub(super) fn gather(&self, x: &Acts<B>, y: &mut Acts<B>) -> Result<()> {
        let (dim, index, rows) =
            (self.net.dims.hidden, &self.batch.output_rows, self.batch.outputs.rows);
        let (x, y) = (Mat::new(x, dim), MatMut::new(y, dim));
        Ok(self.net.backend.gather(embedding::Gather { x, index, y, rows, dim })?)
    }

    fn scatter(&self, x: &Acts<B>, y: &mut Acts<B>) -> Result<()> {
        let (dim, index, rows) =
            (self.net.dims.hidden, &self.batch.output_rows, self.batch.outputs.rows);
        let (x, y, accumulate) = (Mat::new(x, dim), MatMut::new(y, dim), true);
        Ok(self.net.backend.scatter(embedding::Scatter { x, index, y, accumulate, rows, dim })?)
    }

    /// Backward of [`Pass::block`]: `g.stream` comes as `d output` and leaves as `d x` (where needed).
    pub(super) fn block_back(
        &self,
        block: &Block<B>,
        (x, acts): (&Acts<B>, &BlockActs<B>),
        g: &mut Gradients<B>,
        scratch: &mut Scratch<B>,
        (grads, reach): (&mut B::Buf<f32>, Reach),
    ) -> Result<()> {
        let (d, lane) = (self.net.dims, &self.batch.full);
        let Gradients { stream, normed, qkv, attention, mlp_in, hidden, .. } = g;
        let buffers = MlpGradients {
            stream: &mut *stream,
            normed: &mut *normed,
            attention: &mut *attention,
            mlp_in,
            hidden,
        };
        if !self.after_attention_back(block, (lane, acts), buffers, scratch, (grads, reach))? {
            return Ok(());
        }
        let out = (&acts.attention, &acts.lse, &*attention);
        let dq = attention::QueryGrads::Beside(0);
        self.attention_back(lane, self.packed(&acts.qkv), out, (dq, qkv))?;
        self.rotate(lane, MatMut::at(qkv, 0, d.qkv), self.net.heads.heads, true)?;
        self.rotate(lane, MatMut::at(qkv, d.q, d.qkv), self.net.heads.kv_heads, true)?;
        self.norm(
            lane.rows,
            &block.norm1,
            Mat::new(x, d.hidden),
            MatMut::new(&mut scratch.normed, d.hidden),
        )?;
        let x_normed = Mat::new(&scratch.normed, d.hidden);
        let (dq, dk, dv) = self.packed(qkv);
        self.learn(lane.rows, (block, |p| p.q), (x_normed, dq), grads)?;
        self.learn(lane.rows, (block, |p| p.k), (x_normed, dk), grads)?;
        self.learn(lane.rows, (block, |p| p.v), (x_normed, dv), grads)?;
        let dx = reach.normed.then(|| MatMut::new(&mut *normed, d.hidden));
        let (at, xdy) = ((block, (|s| &s.qkv) as Pick), (x_normed, Mat::new(qkv, d.qkv)));
        self.adapted_back(lane, at, &self.qkv_products(block), xdy, (&mut *grads, dx))?;
        let xdy = (Mat::new(x, d.hidden), Mat::new(&*normed, d.hidden));
        self.learn_norm(lane.rows, (&block.norm1, |p| p.blocks[block.layer].norm1), xdy, grads)?;
        if reach.below {
            let dx = MatMut::new(stream, d.hidden);
            self.norm_back(lane.rows, &block.norm1, xdy.0, xdy.1, dx)?;
        }
        Ok(())
    }

    /// Backward of [`Pass::last_block`]: `g.stream_outputs` comes as the gradient of the output rows,
    /// `g.stream` leaves as `d x` of all rows (where needed).
    pub(super) fn last_block_back(
        &self,
        block: &Block<B>,
        (x, last): (&Acts<B>, &LastActs<B>),
        g: &mut Gradients<B>,
        scratch: &mut Scratch<B>,
        (grads, reach): (&mut B::Buf<f32>, Reach),
    ) -> Result<()> {
        let (d, lane, outputs) = (self.net.dims, &self.batch.full, &self.batch.outputs);
        let Gradients { stream_outputs, normed_outputs, attention, mlp_in, hidden, .. } = g;
        let buffers = MlpGradients {
            stream: stream_outputs,
            normed: normed_outputs,
            attention,
            mlp_in,
            hidden,
        };
        if !self.after_attention_back(
            block,
            (outputs, &last.acts),
            buffers,
            scratch,
            (grads, reach),
        )? {
            return Ok(());
        }
        let (_, k, v) = self.packed(&last.qkv);
        let out = (&last.acts.attention, &last.acts.lse, &g.attention);
        let dq = attention::QueryGrads::Apart(MatMut::new(&mut g.q_outputs, d.q));
        let q = Mat::new(&last.q, d.q);
        self.attention_back(outputs, (q, k, v), out, (dq, &mut g.qkv))?;
        self.rotate(outputs, MatMut::new(&mut g.q_outputs, d.q), self.net.heads.heads, true)?;
        self.rotate(lane, MatMut::at(&mut g.qkv, d.q, d.qkv), self.net.heads.kv_heads, true)?;
        self.norm(
            lane.rows,
            &block.norm1,
            Mat::new(x, d.hidden),
            MatMut::new(&mut scratch.normed, d.hidden),
        )?;
        self.gather(&scratch.normed, &mut scratch.gathered)?;
        let (x_normed, x_gathered) =
            (Mat::new(&scratch.normed, d.hidden), Mat::new(&scratch.gathered, d.hidden));
        let (dq, dkv) = (Mat::new(&g.q_outputs, d.q), Mat::new(&g.qkv, d.qkv));
        let (_, dk, dv) = self.packed(&g.qkv);
        self.learn(outputs.rows, (block, |p| p.q), (x_gathered, dq), grads)?;
        self.learn(lane.rows, (block, |p| p.k), (x_normed, dk), grads)?;
        self.learn(lane.rows, (block, |p| p.v), (x_normed, dv), grads)?;
        let [q, k, v] = self.qkv_products(block);
        let normed_outputs = &mut g.normed_outputs;
        let dx = reach.normed.then(|| MatMut::new(&mut *normed_outputs, d.hidden));
        let xdy = (x_gathered, dq);
        self.adapted_back(outputs, (block, |s| &s.q), &[q], xdy, (&mut *grads, dx))?;
        let dx = reach.normed.then(|| MatMut::new(&mut g.normed, d.hidden));
        let xdy = (x_normed, dkv);
        self.adapted_back(lane, (block, |s| &s.kv), &[k, v], xdy, (&mut *grads, dx))?;
        if !reach.normed {
            return Ok(());
        }
        self.scatter(normed_outputs, &mut g.normed)?;
        let xdy = (Mat::new(x, d.hidden), Mat::new(&g.normed, d.hidden));
        self.learn_norm(lane.rows, (&block.norm1, |p| p.blocks[block.layer].norm1), xdy, grads)?;
        if !reach.below {
            return Ok(());
        }
        self.net.backend.zero(&mut g.stream, 0, lane.rows * d.hidden)?;
        self.scatter(&g.stream_outputs, &mut g.stream)?;
        let dx = MatMut::new(&mut g.stream, d.hidden);
        self.norm_back(lane.rows, &block.norm1, xdy.0, xdy.1, dx)
    }

    fn attention_back(
        &self,
        lane: &DeviceLane<B>,
        (q, k, v): (In<'_, B>, In<'_, B>, In<'_, B>),
        (out, lse, dout): (&Acts<B>, &B::Buf<f32>, &Acts<B>),
        (dq, dqkv): (attention::QueryGrads<'_, B>, &mut Acts<B>),
    ) -> Result<()> {
        let d = self.net.dims;
        Ok(self.net.backend.attention_backward(attention::Backward {
            heads: self.net.heads,
            routing: lane.routing(&self.batch.groups, self.batch.num_groups),
            q,
            k,
            v,
            out: Mat::new(out, d.q),
            lse,
            dout: Mat::new(dout, d.q),
            grads: attention::Grads { rows: MatMut::new(dqkv, d.qkv), dq, dk: d.q, dv: d.q + d.kv },
            q_rows: lane.rows,
            k_rows: self.batch.full.rows,
        })?)
    }

    /// Backward of [`Pass::after_attention`]: the stream's gradient comes as `d output`, leaves as
    /// `d x` through the residual; `g.attention` as `d attention`. False when nothing below needs it.
    fn after_attention_back(
        &self,
        block: &Block<B>,
        (lane, acts): (&DeviceLane<B>, &BlockActs<B>),
        g: MlpGradients<'_, B>,
        scratch: &mut Scratch<B>,
        (grads, reach): (&mut B::Buf<f32>, Reach),
    ) -> Result<bool> {
        let (d, kind) = (self.net.dims, self.net.kind);
        if self.trains(lane, block, |s| &s.down) {
            self.activate(lane.rows, &acts.mlp_in, &mut scratch.hidden)?;
        }
        let xdy = (Mat::new(&scratch.hidden, d.mlp), Mat::new(&*g.stream, d.hidden));
        self.learn(lane.rows, (block, |p| p.proj), xdy, grads)?;
        let dx = Some(MatMut::new(&mut *g.hidden, d.mlp));
        let products = [placed(&block.down, 0)];
        self.adapted_back(lane, (block, |s| &s.down), &products, xdy, (&mut *grads, dx))?;
        if reach.lowest == Part::Down && !reach.below {
            return Ok(false);
        }
        let (x, dh, dx) = (
            Mat::new(&acts.mlp_in, d.mlp_in),
            Mat::new(&*g.hidden, d.mlp),
            MatMut::new(g.mlp_in, d.mlp_in),
        );
        self.net.backend.activation_backward(activation::Backward {
            kind,
            x,
            dh,
            dx,
            rows: lane.rows,
            dim: d.mlp,
        })?;
        let middle = Mat::new(&acts.middle, d.hidden);
        if self.trains(lane, block, |s| &s.mlp_in) {
            self.norm(lane.rows, &block.norm2, middle, MatMut::new(&mut scratch.normed, d.hidden))?;
        }
        let xdy = (Mat::new(&scratch.normed, d.hidden), Mat::new(&*g.mlp_in, d.mlp_in));
        self.learn(lane.rows, (block, |p| p.fc), xdy, grads)?;
        let dx = Some(MatMut::new(&mut *g.normed, d.hidden));
        let products = self.mlp_products(block);
        self.adapted_back(lane, (block, |s| &s.mlp_in), &products, xdy, (&mut *grads, dx))?;
        if reach.lowest == Part::MlpIn && !reach.below {
            return Ok(false);
        }
        let dy = Mat::new(&*g.normed, d.hidden);
        let norm2 = (&block.norm2, |p: &TrunkPlaces| p.blocks[block.layer].norm2);
        self.learn_norm(lane.rows, norm2, (middle, dy), grads)?;
        self.norm_back(lane.rows, &block.norm2, middle, dy, MatMut::new(g.stream, d.hidden))?;
        let dout = Mat::new(&*g.stream, d.hidden);
        let xdy = (Mat::new(&acts.attention, d.q), dout);
        self.learn(lane.rows, (block, |p| p.o), xdy, grads)?;
        let dx = Some(MatMut::new(&mut *g.attention, d.q));
        let products = [placed(&block.o, 0)];
        self.adapted_back(lane, (block, |s| &s.o), &products, xdy, (&mut *grads, dx))?;
        Ok(reach.lowest == Part::Qkv || reach.below)
    }
}

/// Gradient buffers of the part after attention.
#[derive(Debug)]
struct MlpGradients<'a, B: kernels::Backend> {
    stream: &'a mut Acts<B>,
    normed: &'a mut Acts<B>,
    attention: &'a mut Acts<B>,
    mlp_in: &'a mut Acts<B>,
    hidden: &'a mut Acts<B>,
}
